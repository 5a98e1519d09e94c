"""Into how many cells a particle is divided for the verb rigidity, and how many particles are looked at, if nothing
else is asked for. Standard library only: the command line and the form read it."""
CELLS, PARTICLES = 24, 2000
FEWEST_CELLS, MOST_CELLS = 4, 60
