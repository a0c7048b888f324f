"""Studies: what a table of measured runs shows. config.py says what is asked, anova.py answers."""
