"""Several small students instead of one network: losing one of them costs a little accuracy, and no answer.

Source: RoCoIn (arXiv:2406.14185), our reading: the filters that a teacher's last layer reads are shared out by how they fire
together, and each student learns to give its part of them. Differs: the students learn together, with a random set of them missing
at every step, and the joining classifier is linear, so that a student sends a score per class and not its filters.

`teacher` runs the network that is distilled, `partition` shares out its filters, `network` makes students of a size, `fit` trains
them, `join` measures what every set of them knows, `build` puts it together. `zpipe.models.train_students` is the way in.
"""
