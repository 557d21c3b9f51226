"""Any model against any labeled dataset: errors beside baselines, identities, figures and a report."""
