"""The findings of studies: statistics, tables, pictures and pages."""
