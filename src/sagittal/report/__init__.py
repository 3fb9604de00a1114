"""From evidence to pages that people read: figures, the report, the model card."""
