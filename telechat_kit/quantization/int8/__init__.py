"""From ranges to scales and from float to int8: what calibration, methods and formats share."""
