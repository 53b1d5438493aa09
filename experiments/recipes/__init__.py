"""Recipes that the experiments name; files like a user's own."""
