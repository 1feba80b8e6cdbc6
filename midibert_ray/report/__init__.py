"""What studies found: statistics, tables, pictures and pages."""
