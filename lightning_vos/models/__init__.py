"""The five methods, a folder a paper."""
