"""raycd: composed image retrieval with CLIP-CD, trained and served on Ray.

The rooms, from the bottom up: config, errors -> data, model -> train, embed, mine, evaluate, index,
search -> runtime. Only runtime/ (and jobs/, serve/, tune/ outside of this package) imports ray or
mlflow. Importing raycd imports neither torch nor ray.
"""

from raycd import extras

__version__ = "0.1.0"

extras.tell_of_rooms()
