"""Runs the jobs of a folder or a CSV, one group after the other, and keeps the tables of results up to date.

In the output folder are results.csv, seconds.csv, index.html and a folder for each object, with its files and record.json, which
says from what they were made. A second run keeps what is whole and of the same photo, mask, options and models.
"""
