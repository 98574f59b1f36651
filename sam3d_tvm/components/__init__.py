"""The networks of SAM-3D-Objects, built from Relax ops: nothing here needs torch."""
