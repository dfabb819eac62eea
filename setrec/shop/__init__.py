"""The shop's database: users, their events, and what was answered."""
