"""The checks of ``pqcore doctor``, by what they look at; `pqcore.doctor.examine` runs them all."""
