"""From label volumes to priors."""
