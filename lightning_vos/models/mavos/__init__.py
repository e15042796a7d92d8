"""MAVOS: constant modulated cross-attention memory (Shaker et al., WACV 2025)."""
