"""The checks of ``pqcore doctor``, grouped by subject; `pqcore.doctor.examine` runs them all."""
