"""What is measured, and the results as data in bench/results."""
