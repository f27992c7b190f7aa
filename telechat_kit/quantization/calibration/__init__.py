"""Calibration: which samples a model runs on, what its linears see of them, and the int8 ranges that follow."""
