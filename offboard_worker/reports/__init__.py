"""Reports: what a case or a period looks like to a person, and to an auditor."""
