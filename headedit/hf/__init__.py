"""What headedit reads of transformers: configs, loading, modes and quantized weights."""
