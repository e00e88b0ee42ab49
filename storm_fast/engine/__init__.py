"""How a training step is run, eager or captured, and the moving parts it runs on."""
