"""What a reader sees: tables, figures, sentences and pages, of studies and of fine-tuning."""
