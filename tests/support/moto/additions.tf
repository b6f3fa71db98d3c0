# What the test needs besides; laid beside a copy of the configuration.

# moto asks for actions that AWS does not know: there a batch is covered by the action of a single message.
resource "aws_iam_role_policy" "batches" {
  for_each = { importer = "sqs:SendMessageBatch", transformer = "sqs:DeleteMessageBatch" }

  name = "batches"
  role = aws_iam_role.host[each.key].id

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = each.value, Resource = local.queues }]
  })
}

# Who may do everything: what is refused to others succeeds here, so it was not refused for being wrong.
resource "aws_iam_role" "administrator" {
  name               = "administrator"
  assume_role_policy = jsonencode({ Version = "2012-10-17", Statement = [] })
}

resource "aws_iam_role_policy" "administrator" {
  name = "everything"
  role = aws_iam_role.administrator.id

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "*", Resource = "*" }]
  })
}

output "administrator_arn" {
  value = aws_iam_role.administrator.arn
}
