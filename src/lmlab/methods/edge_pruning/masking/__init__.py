"""The model with edges switched: gates, cached activations, counterfactual passes."""
