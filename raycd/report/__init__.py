"""What a run has to show: `page.Report` -> one HTML file, `table.recall_table` -> the same numbers
for a terminal.
"""
