"""Cohorts: many cases from a manifest into one table, in this process or on a Ray cluster."""
