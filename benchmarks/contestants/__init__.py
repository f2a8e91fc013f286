"""What ``benchmarks/deployed.py`` puts side by side: which files, where they run, and what is printed of them."""
