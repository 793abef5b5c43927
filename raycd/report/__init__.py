"""The report of a run: an HTML file (`page.Report`), and a table of recall for terminals."""
