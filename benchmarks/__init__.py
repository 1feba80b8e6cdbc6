"""Speed, measured side by side with what a user would otherwise pick; the results are in RESULTS.md."""
