"""Reports: what a person, or a program, sees while work goes on."""
