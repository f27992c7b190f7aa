"""Which linears stay in float: by score, by noise, or by measuring the model's own divergence."""
