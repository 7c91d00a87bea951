"""A Django project, for the tests of the Django app."""
