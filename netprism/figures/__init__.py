"""Pictures of a run: numbers in, PNG (or an interactive page) out; one file for each analysis."""
