def blueprint(): return {}
NAME="x"
