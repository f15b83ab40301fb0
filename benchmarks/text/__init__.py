"""GLUE fine-tuning: tasks, data, models, training and report."""
