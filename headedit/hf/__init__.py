"""What headedit reads of transformers: configs, building, loading, modes, layers and quantized weights."""
