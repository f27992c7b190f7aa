"""Ways to make int8 lose less: scales and signs of channels, channels split, weights rounded with calibration."""
