"""Many runs from one plan, one after another, with a table and Pareto plots of what came of them."""
