"""Studies: many runs, one table, one figure. The grid, the values, the page."""
