"""Training, serving and the reproduction on one CUDA card, measured; README.md beside this file is the recipe."""
