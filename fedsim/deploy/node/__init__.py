"""What runs at a data owner: its rules, its ledger, its log, and the work on its own rows."""
