"""The SAFE team decides on a river flood: four agents, twelve tasks, one decision."""
