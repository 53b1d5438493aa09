"""Built-in recipes on real data: digits, fashion-mnist, cifar10."""
