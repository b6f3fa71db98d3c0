# Who is told when a person has to look. The alarms see what AWS sees; the daemons say more in their logs and metrics.

resource "aws_sns_topic" "alarms" {
  name = "${var.name}-alarms"
}

resource "aws_sns_topic_subscription" "email" {
  count = var.alarm_email == null ? 0 : 1

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.alarm_email
}

resource "aws_cloudwatch_metric_alarm" "queue_age" {
  for_each = aws_sqs_queue.bell

  alarm_name        = "${var.name}-${each.key}-nobody-answers-the-bell"
  alarm_description = "A pointer of the stream ${each.key} has waited too long: the transformer is down, holds or cannot reach the database. See its log."

  namespace   = "AWS/SQS"
  metric_name = "ApproximateAgeOfOldestMessage"
  dimensions  = { QueueName = each.value.name }
  statistic   = "Maximum"

  comparison_operator = "GreaterThanThreshold"
  threshold           = var.queue_age_alarm_secs
  period              = 60
  evaluation_periods  = 3

  # An empty queue has no age.
  treat_missing_data = "notBreaching"
  alarm_actions      = [aws_sns_topic.alarms.arn]
  ok_actions         = [aws_sns_topic.alarms.arn]

  tags = { Stream = each.key }
}

resource "aws_cloudwatch_metric_alarm" "database_storage" {
  alarm_name        = "${var.name}-database-disk-nearly-full"
  alarm_description = "Less than a tenth of the first size is free, and growing by itself has not helped."

  namespace   = "AWS/RDS"
  metric_name = "FreeStorageSpace"
  dimensions  = { DBInstanceIdentifier = aws_db_instance.main.identifier }
  statistic   = "Minimum"

  comparison_operator = "LessThanThreshold"
  threshold           = var.database_storage_gib * 1024 * 1024 * 1024 / 10
  period              = 300
  evaluation_periods  = 3

  alarm_actions = [aws_sns_topic.alarms.arn]
  ok_actions    = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_metric_alarm" "database_cpu" {
  alarm_name        = "${var.name}-database-busy"
  alarm_description = "The database has been at more than 80 % for half an hour, longer than a first load should take."

  namespace   = "AWS/RDS"
  metric_name = "CPUUtilization"
  dimensions  = { DBInstanceIdentifier = aws_db_instance.main.identifier }
  statistic   = "Average"

  comparison_operator = "GreaterThanThreshold"
  threshold           = 80
  period              = 300
  evaluation_periods  = 6

  alarm_actions = [aws_sns_topic.alarms.arn]
  ok_actions    = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_metric_alarm" "host_status" {
  for_each = aws_instance.host

  alarm_name        = "${var.name}-${each.key}-host-down"
  alarm_description = "The host of the ${each.key}s fails its status checks, or is stopped."

  namespace   = "AWS/EC2"
  metric_name = "StatusCheckFailed"
  dimensions  = { InstanceId = each.value.id }
  statistic   = "Maximum"

  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 60
  evaluation_periods  = 5

  # A host that is stopped says nothing.
  treat_missing_data = "breaching"
  alarm_actions      = [aws_sns_topic.alarms.arn]
  ok_actions         = [aws_sns_topic.alarms.arn]
}
