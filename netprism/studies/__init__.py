"""Studies: many runs, one table, one figure. The grid, the runs by their configs, the values, the page."""
