def config_of(folder):
    raise NotImplementedError


def resolve(name):
    raise NotImplementedError


def load(folder, model, shardings=None):
    raise NotImplementedError


def save(*a, **k):
    pass
