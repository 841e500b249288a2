"""`python -m internvlu_core doctor`: whether a checkpoint, a machine and this code work together, in one report.

checkup.py has the order of what is done. docs/doctor.md says how to read the report.
"""
