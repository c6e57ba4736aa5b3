"""What happens, in order."""

from flows import environment

environment.apply()
