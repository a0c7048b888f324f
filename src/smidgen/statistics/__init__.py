"""What a table of measurements shows: config.py says what is asked, anova.py answers."""
