"""Fine-tuning within a budget."""
