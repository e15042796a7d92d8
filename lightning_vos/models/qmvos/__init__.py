"""QMVOS: object queries over XMem's memory (Zhou et al., ICME 2024; Cheng and Schwing, ECCV 2022)."""
