"""Text on its way into tensors: tokenizer, dialogue rendering and loss masks, packing."""
